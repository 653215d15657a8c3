<?php
// Names the process. With a query it says that it has begun, and waits until it may finish.
if ($_SERVER['QUERY_STRING'] !== '') {
    touch('begun');
    for ($tries = 0; $tries < 3000 && !file_exists('finish'); $tries++) {
        usleep(10000);
        clearstatcache();
    }
}
echo 'process ', getmypid();
