# Ends the servers of a test run whose own process is gone, then removes the run's directory ($1).
#
# Reads "add PID START SIGNAL" and "drop PID" from standard input. The test process holds the other end of that pipe,
# so however it ends, even by SIGKILL, this loop sees the end of the input. START is field 22 of /proc/PID/stat: with it
# a number that was given to a later process is never signalled.
trap '' INT TERM HUP QUIT
directory=$1
processes=

while read -r verb pid started signal; do
  case $verb in
    add) processes="$processes $pid:$started:$signal" ;;
    drop)
      kept=
      for process in $processes; do
        case $process in "$pid":*) ;; *) kept="$kept $process" ;; esac
      done
      processes=$kept ;;
  esac
done

alive() { # PID START
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  set -- "$2" ${stat##*) }
  case $2 in Z|X) return 1 ;; esac
  [ "$1" = - ] || [ "$1" = "${21}" ]
}
tree() { # PID: it and all that it started
  echo "$1"
  for child in $(cat "/proc/$1"/task/*/children 2>/dev/null); do tree "$child"; done
}
any_alive() {
  for process in $processes; do
    rest=${process#*:}
    if alive "${process%%:*}" "${rest%%:*}"; then return 0; fi
  done
  return 1
}

for process in $processes; do
  pid=${process%%:*} rest=${process#*:}
  if alive "$pid" "${rest%%:*}"; then
    kill -CONT $(tree "$pid") 2>/dev/null
    kill -"${rest#*:}" "$pid" 2>/dev/null
  fi
done
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
  any_alive || break
  sleep 0.2
done
for process in $processes; do
  pid=${process%%:*} rest=${process#*:}
  if alive "$pid" "${rest%%:*}"; then
    family=$(tree "$pid")
    kill -KILL $family 2>/dev/null
    for member in $family; do
      while alive "$member" -; do sleep 0.05; done
    done
  fi
done
[ -n "${CATALOG_BRIDGE_KEEP:-}" ] || rm -rf "$directory"
